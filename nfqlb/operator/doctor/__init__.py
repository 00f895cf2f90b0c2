"""`nfqlb doctor`: what is wrong with the gateway and its machine, and what to do about it."""
