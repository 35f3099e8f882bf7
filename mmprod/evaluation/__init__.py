"""Figures about models: an attribute judge and agreement between attributes."""
