package ipam

import (
	"errors"
	"fmt"
)

var (
	// ErrLocked says that another process has the pool's record open.
	ErrLocked = errors.New("the address record is in use by another process")
	// ErrNoBlock says that the pool that blocks are claimed from has none left.
	ErrNoBlock = errors.New("no free block")
	// ErrConflict says that an address or a container is recorded for somebody else.
	ErrConflict = errors.New("recorded for another pod")
)

// ExhaustedError says that no address of a family can be handed out, with the
// numbers that tell why.
type ExhaustedError struct{ Usage }

// Error names the family and all numbers.
func (e *ExhaustedError) Error() string {
	return fmt.Sprintf("no free %s address: %d blocks with %d addresses, %d used, %d cooling down, %d reserved",
		e.Family, e.Blocks, e.Total, e.Used, e.Cooling, e.Reserved)
}
