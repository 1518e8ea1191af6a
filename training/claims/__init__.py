"""The paper's claims, each a command that measures it on checkpoints and writes what it found."""
