"""The numbers of ``config.json`` that are fitted to photographs, and what they are worth."""
