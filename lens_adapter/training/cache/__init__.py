"""What training needs of the frozen parts, computed once and kept in a folder."""
