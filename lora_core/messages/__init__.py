"""What the user is told: a code, the field it is about and values. The sentence of each language stands in a table in texts/."""
