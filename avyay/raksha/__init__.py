"""RAKṢĀ (रक्षा, protection): the security scanner for code that agents write."""
