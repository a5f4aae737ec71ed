"""Mutation testing: does a test notice when one expression of a module is changed?"""
