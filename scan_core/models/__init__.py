"""Networks: backbones and heads, their files, their outputs on plain views."""
