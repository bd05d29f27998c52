"""A recipe from its texts to its report; what of it is there already, and what it will take."""
