"""`-m hypha_trainer` is short for `-m hypha_trainer.training`."""

from hypha_trainer.program import end_with
from hypha_trainer.training import main

if __name__ == "__main__":
    end_with(main)
