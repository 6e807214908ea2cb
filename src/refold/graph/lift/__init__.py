"""What each call of a graph means in the algebra."""
