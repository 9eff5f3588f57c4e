"""Numbers that captions, answers, rankings and boxes are judged by; no Java, no download."""
