//go:build tools

// Package kine names the program that scripts/servers builds from here.
package kine

import _ "github.com/k3s-io/kine"
