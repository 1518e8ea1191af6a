"""The paper's claims: one command each, which measures checkpoints and writes the results."""
