"""`-m hypha_trainer` is short for `-m hypha_trainer.training`."""

from hypha_trainer.training import run

if __name__ == "__main__":
    run()
