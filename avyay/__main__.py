"""`python -m avyay` is the same program as `avyay`."""

from avyay.cli.main import main

if __name__ == "__main__":
    main()
