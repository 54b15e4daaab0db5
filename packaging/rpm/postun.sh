if [ -d /run/systemd/system ]; then
	systemctl daemon-reload >/dev/null 2>&1 || :
fi
# /run/enid stays until the next boot: on kernels that keep no mark on addresses, it is what tells
# enid's addresses from others' when the package comes back.
if [ "$1" -eq 0 ]; then
	for folder in /etc/enid/enid.d /etc/enid /usr/share/doc/enid/decisions \
		/usr/share/doc/enid/examples /usr/share/doc/enid/schema /usr/share/doc/enid/captures /usr/share/doc/enid /usr/share/licenses/enid; do
		rmdir "$folder" 2>/dev/null || :
	done
fi
