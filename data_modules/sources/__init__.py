"""One file a layout: which files are a case, and which cases a pair."""
