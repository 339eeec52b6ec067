"""Formats: folders and files of images, arrays, archives, tables, saved datasets; none believes a header."""
