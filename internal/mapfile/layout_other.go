//go:build netctl_otherlayout

package mapfile

// A program that is built with this tag has other mapped files, so that a test can
// upgrade to it and roll back from it as over any change of formats.
const (
	HeadWords = 1024
	Layout    = 1 << 16
)
