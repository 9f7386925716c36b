local phase = obj.status ~= nil and obj.status.phase or "Pending"
local message = obj.status ~= nil and obj.status.reason or nil

if phase == "Succeeded" then
  return { status = "Healthy", message = message }
end
if phase == "Failed" then
  return { status = "Degraded", message = message }
end
return { status = "Progressing", message = message or phase }
