"""What the client, the library, the services and training share; needs NumPy and Pillow alone."""
