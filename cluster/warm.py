"""Imported by the template that ranks are forked from: does once what each would do by itself.

What a rank needs at its first request to a bucket is read here, and no connection is made.
"""

from ..data.s3 import descriptions

descriptions()
