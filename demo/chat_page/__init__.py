"""The Chat tab: a page at chat/ that talks to the server's OpenAI endpoints. static/main.js lists its modules."""
