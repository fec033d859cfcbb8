package estate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/netctl/netctl/internal/kernel"
)

// maxExport bounds what is read of a table in words.
const maxExport = 1 << 30

// Heir is who gets what one process leaves.
type Heir interface {
	Wants(name string) bool
	Give(name string, fds ...int) error
}

// Export gives an heir those tables in words that it wants, each as a file in memory.
func Export(heir Heir, tables map[string]func(io.Writer) error) error {
	var errs []error
	for name, export := range tables {
		if !heir.Wants(name) {
			continue
		}
		var b bytes.Buffer
		err := export(&b)
		if err == nil {
			err = give(heir, name, b.Bytes())
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func give(heir Heir, name string, data []byte) error {
	f, err := kernel.MemoryFile(name, data)
	if err != nil {
		return err
	}
	fd, err := kernel.DupOf(f)
	if err == nil {
		err = heir.Give(name, fd)
		kernel.CloseFDs([]int{fd})
	}
	return errors.Join(err, f.Close())
}

// Import takes the tables that are there in words.
func (e Estate) Import(tables map[string]func([]byte) error) error {
	var errs []error
	for name, take := range tables {
		fd, ok := e.TakeOne(name)
		if !ok {
			continue
		}
		f := os.NewFile(uintptr(fd), name)
		data, err := io.ReadAll(io.NewSectionReader(f, 0, maxExport))
		if err == nil {
			err = take(data)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
