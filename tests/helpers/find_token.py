"""Look for the token twice; prints a hash of it, and how it is shown."""

import hashlib

from colab_utils import hub

found = hub.token()
print("again")
assert hub.token() == found
print("found:", hashlib.sha256(found.encode()).hexdigest() if found else None)
print("shown:", repr(found), [found], {"token": found})
