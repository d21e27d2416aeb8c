"""Data sets and the ways to spread them over clients; knows neither the engine nor the methods."""
