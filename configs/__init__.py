"""Recipes: plain data, one file each."""
