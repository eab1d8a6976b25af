"""Reports to look at: pages in one file that need neither a server nor a network."""
