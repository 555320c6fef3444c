"""Models of other libraries: does all that this library promises work with them?"""
