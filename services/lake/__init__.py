"""Offline work over any number of images: tables of answers, written exactly once."""
