"""Formats: folders and files of pictures, arrays, archives, tables, saved datasets; none believes a header."""
