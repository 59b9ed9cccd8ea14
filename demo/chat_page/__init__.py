"""The Chat tab: one page of its own at chat/, which talks to the server's OpenAI endpoints. Modules: see static/main.js."""
