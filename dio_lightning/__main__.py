"""`python -m dio_lightning fit|validate|test|predict|export ...`."""

from dio_lightning.cli import main

if __name__ == "__main__":
    main()
