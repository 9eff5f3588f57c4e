"""One file per family of arms; each is run as a program in a fresh process."""
