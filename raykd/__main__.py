"""`python -m raykd` is the same as `raykd`."""

from raykd.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
