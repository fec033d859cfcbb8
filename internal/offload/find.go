package offload

import (
	"encoding/json"
	"fmt"
	"os"
)

// found is a Result in a file, with the boot that it is of: a kernel does not change
// before the next one.
type found struct {
	Boot   string `json:"boot"`
	Result Result `json:"result"`
}

// Find returns what a file says of this boot, or else tests and writes the file. The
// error wraps ErrNotTested, or says that the file was not written: then the Result
// holds all the same.
func Find(path, boot string) (Result, error) {
	var f found
	if data, err := os.ReadFile(path); err == nil && json.Unmarshal(data, &f) == nil && f.Boot == boot {
		return f.Result, nil
	}
	r, err := Test()
	if err != nil {
		return r, err
	}
	data, err := json.Marshal(found{Boot: boot, Result: r})
	if err == nil {
		err = os.WriteFile(path+".new", data, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return r, fmt.Errorf("keep what the test of TUN offloads found: %w", err)
	}
	return r, nil
}
