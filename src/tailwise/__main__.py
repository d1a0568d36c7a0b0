"""`python -m tailwise`."""

from tailwise.cli.main import run

if __name__ == "__main__":
    run()
