"""`python -m darkroom` is the `darkroom` command."""

from darkroom.main import main

if __name__ == "__main__":
    main()
