"""What a run keeps: answers by what was really asked, money, and the report."""
