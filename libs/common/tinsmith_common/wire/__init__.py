"""Request and response bodies of the Tinker API, one module per group of endpoints, and the protobuf codec.

Requests ignore unknown fields, because newer SDKs add some. Responses are what SDK 0.38 validates strictly.
"""
