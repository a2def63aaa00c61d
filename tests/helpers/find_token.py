"""Look for the token twice; prints a hash of it, and how it is shown.

Prints also the requests to Colab's page, if the stand-in of `google.colab` got any.
"""

import hashlib
import sys

from colab_utils import hub

found = hub.token()
print("again")
assert hub.token() == found
if page := sys.modules.get("google.colab._message"):
    print("asked:", page.calls())
print("found:", hashlib.sha256(found.encode()).hexdigest() if found else None)
print("shown:", repr(found), [found], {"token": found})
