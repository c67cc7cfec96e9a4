"""Where clients connect: decode, submit, wait, encode. No rule of trading lives here."""
