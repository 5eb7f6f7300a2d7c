"""What carries anyloader into other projects, one file for each; each imports its own only."""
