"""Published tables of similarities.

table.py and families.py read one from text.py, statistics.py says what is in it, numbers.py gives that to claims.
"""
