"""The built-in provider: a small language model run by llama.cpp on this machine."""
