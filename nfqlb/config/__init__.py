"""The configuration file: text in, checked specs out, or a report of every mistake in it."""
