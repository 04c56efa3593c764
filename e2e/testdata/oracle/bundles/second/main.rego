# A file with the name of one in the other bundle.
package other

admins := data.bundled.admins

greeting := data.app.rbac.greeting
