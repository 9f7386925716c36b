"""Draw the pictures of the documentation that need no cluster: `PYTHONPATH=tests python -m pictures`."""

import trio

from pictures import doctor, status_page

if __name__ == "__main__":
    doctor.draw()
    trio.run(status_page.draw)
