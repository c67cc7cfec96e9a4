"""What processes share: record layouts, numbers, segments, rings, doorbells. It knows no rule of trading."""
