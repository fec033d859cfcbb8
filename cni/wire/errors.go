package wire

import (
	"encoding/json"
	"fmt"
)

// Code is a CNI error code.
type Code uint

// The codes of the specification, and our own from 100.
const (
	CodeIncompatible  Code = 1   // CNI version not supported
	CodeUnsupported   Code = 2   // a field of the configuration is not supported
	CodeEnvironment   Code = 4   // bad environment variable
	CodeIO            Code = 5   // stdin cannot be read
	CodeDecode        Code = 6   // bad JSON
	CodeConfig        Code = 7   // bad network configuration
	CodeNetns         Code = 8   // the network namespace is gone, or is the node's own
	CodeTryAgain      Code = 11  // transient: the runtime should retry
	CodeUnavailable   Code = 50  // ADD cannot be served
	CodeLimited       Code = 51  // ADD cannot be served and running pods may suffer
	CodeDuplicateIP   Code = 101 // the address to be given is in use on this node
	CodeNotNetns      Code = 102 // CNI_NETNS is not a network namespace
	CodeConflict      Code = 103 // this container and interface are attached already
	CodeInterface     Code = 104 // an interface of that name exists in the namespace
	CodeCheck         Code = 105 // CHECK found a difference
	CodeInternal      Code = 999
	currentCNIVersion      = "1.1.0"
)

// Error is an error as a CNI runtime reads it: the message says what to do.
type Error struct {
	// CNIVersion is the version of the configuration at hand; "" means the
	// newest one.
	CNIVersion string `json:"cniVersion"`
	Code       Code   `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

// Errorf returns an Error with a formatted message.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...)}
}

// Error returns the message and the details.
func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}

// JSON returns the error as the specification wants it on stdout.
func (e *Error) JSON() []byte {
	out := *e
	if out.CNIVersion == "" {
		out.CNIVersion = currentCNIVersion
	}
	b, err := json.Marshal(out)
	if err != nil { // strings and a number always marshal
		return []byte(`{"cniVersion":"1.1.0","code":999,"msg":"internal error"}`)
	}
	return b
}

// Response returns the error as the answer to a request.
func (e *Error) Response() *Response { return &Response{Exit: 1, Output: e.JSON()} }
