package offload

import "github.com/netctl/netctl/internal/kernel"

// Link is a TUN that a test may break.
type Link = link

// Through is Test with a TUN that is seen through something.
func Through(through func(*kernel.TUN) Link) (Result, error) { return test(through) }
